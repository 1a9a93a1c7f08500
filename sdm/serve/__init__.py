"""The species explorer: a region index as a local web page.

frame     Web Mercator images, and where their pixels lie in a grid
cache     results kept in memory
products  cosines of many embeddings with species
taxa      taxa as the page shows them
pixels    the index's pixels of the overview image, in memory
pictures  species as an overview image and as tiles of the web map
places    the species at a place
state     an index and its model: answers all questions of the page
app       HTTP
page      what the browser loads
"""
