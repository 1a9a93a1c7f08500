"""Write the hashes of the bundled models and layers, after any of them has changed. See CONTRIBUTING.md.

python recipes/hashes.py
"""

from sdm.files import paths, release

for kind in release.KINDS:
    print(release.write_sums(paths.folder(kind)))
