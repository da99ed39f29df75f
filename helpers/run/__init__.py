"""The runner behind run_all.sh: notebooks executed headless, and the page at the end."""
