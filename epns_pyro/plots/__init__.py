"""Pictures of trajectories: paths, fans over time and films, of a run, of a store or of a file of futures.

futures   what a picture shows: trajectories by source, with the system that they are of
panels    paths and fans as panels, like those of the report
paper     panels on paper: PNG, SVG and PDF
film      GIF and MP4
"""
