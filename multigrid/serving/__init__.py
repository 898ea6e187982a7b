"""A detector behind HTTP: images are uploaded, detections come back, and a page shows them. Needs the extra `serve`."""

from multigrid.serving.libraries import check_libraries

check_libraries()
