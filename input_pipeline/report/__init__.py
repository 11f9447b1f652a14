"""DATA/report.html: contents and problems of a dataset, on one self-contained page.

`page` collects the data and writes the file, `alike` finds duplicates, `findings` lists the problems, `numbers` counts
sizes, `pictures` makes thumbnails, and `report.html.j2` is the page. `augmentation_page` is the page of
`convoy augment`. The template engine and the style are in `convoy.core.html`.
"""
