"""A tiny recipe, its names, and two ranges: what the runs of the tests are made of."""

BEHRMANN = "+proj=cea +lat_ts=30 +datum=WGS84"


RECIPE = """
name = "tiny"
title = "Tiny"
version = "1"
licence = "CC0-1.0"
[[data.source]]
kind = "ranges"
name = "mammals"
path = "{data}"
points_per_cell = 3
points_per_cell_sea = 1
[architecture]
dim = 16
location = {{ sigmas = [1.0], features = 8, width = 32, depth = 1, pitch = 0.5 }}
satellite = {{ size = 16, pixel = 0.06666666666666667, width = 8, depth = 1, pitch = 0.5 }}
environment = {{ width = 16, depth = 1, pitch = 0.25 }}
[objective]
subset_shares = {{ location = 0.2, environment = 0.2 }}
[optimiser]
steps = {steps}
batch = 128
[evaluation]
block_degrees = 10.0
min_cells = 2
"""


TAXA = """species,kingdom,phylum,class,order,family,genus,common,synonyms,group
Ursus arctos,Animalia,Chordata,Mammalia,Carnivora,Ursidae,Ursus,brown bear,,mammal
Ursus ater,Animalia,Chordata,Mammalia,Carnivora,Ursidae,Ursus,black bear,,mammal
Vulpes vulpes,Animalia,Chordata,Mammalia,Carnivora,Canidae,Vulpes,red fox,,mammal
Vulpes alba,Animalia,Chordata,Mammalia,Carnivora,Canidae,Vulpes,white fox,,mammal
Abies alba,Plantae,Tracheophyta,Pinopsida,Pinales,Pinaceae,Abies,silver fir,,tree
"""


def silent(line):
    pass
