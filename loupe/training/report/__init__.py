"""The report of a run: report.html, and its figures as PNGs.

In: a Story with everything the report needs. Out: files in the run's folder.

render (the page, report.html.j2) → sections, cases, findings (what each section says) → figures, thumbnails (pictures),
text (how numbers and names are written) → story (the input of all of them).
"""
