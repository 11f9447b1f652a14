"""DATA/report.html: what a data set is like and what is wrong with it, on one page that needs nothing else.

`page` gathers and writes, `alike` finds what is there twice, `numbers` counts classes and sizes, `pictures` makes the
thumbnails, and `report.html.j2` is the page. `templates`, `style.css` and `thumbnail.html.j2` serve the report of a run
(`convoy.trainer.report`) too.
"""
