"""Pose: are the joints of the generated person where they were to be?"""
