"""Workers on a few machines that share a folder and have no scheduler, each started by an agent at the end of ssh."""
