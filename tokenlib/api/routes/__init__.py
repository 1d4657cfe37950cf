"""The routes, one file per noun. Each says in `door(…)` what it needs of its caller."""
