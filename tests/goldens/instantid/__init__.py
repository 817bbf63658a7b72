"""What InstantID's own code gave.

draw_kps.npz: draw_kps of pipeline_stable_diffusion_xl_instantid.py, in the repository
instantX-research/InstantID at commit 2145b67f9607da6234702063692330185f374486, with OpenCV 5.0.0;
OpenCV 4.11 gives the same pixels. Six sets of five points, made up, and images of 96 x 128 pixels.
"""
