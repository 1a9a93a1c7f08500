# docker build -t taxabind-map . && docker run --rm -v "$PWD/maps:/maps" taxabind-map "Ursus arctos" --bbox -170 48 -100 72
FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY sdm sdm
COPY models models
COPY recipes recipes
COPY data data
# The wheel of torch without CUDA. For GPUs, build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/taxabind-map \
 && /opt/taxabind-map/bin/pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" ".[remote]"

FROM python:3.13-slim
COPY --from=build /opt/taxabind-map /opt/taxabind-map
RUN useradd --create-home --uid 1000 mapper && mkdir /maps && chown mapper /maps
USER mapper
WORKDIR /
ENV PATH=/opt/taxabind-map/bin:$PATH
VOLUME /maps
ENTRYPOINT ["taxabind-map"]
CMD ["--help"]
