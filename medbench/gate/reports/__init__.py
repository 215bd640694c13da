"""An outcome as text: for a terminal, a pull request, GitHub Actions, JUnit, or a program."""
