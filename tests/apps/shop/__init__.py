"""A Django project with its admin, as a person would bring it: nothing in it knows what serves it."""
