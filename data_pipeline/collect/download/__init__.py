"""The download: from rows to checked pictures in a work folder."""
