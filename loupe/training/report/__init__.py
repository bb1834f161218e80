"""The report of a run: report.html, and its figures as PNGs.

In: a Story, all that it tells. Out: files in the run's folder.

render (the page, report.html.j2) → sections, cases, findings (what each part says) → figures, thumbnails (pictures),
text (how numbers and names are written) → story (what they are all given).
"""
