"""Jobs of code hosts: what a pull request changes, judged by what its base revision holds."""
