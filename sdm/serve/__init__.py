"""The species explorer: a region index as a local web page.

`frame` puts pixels of an index on the web map, `products` multiplies them with species, `state` answers
questions about species and places, `app` speaks HTTP, `page` is what the browser loads.
"""
