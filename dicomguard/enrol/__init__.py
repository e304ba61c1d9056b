"""Enrolment: from a bundle and clean images of a site to all that a node needs, and to what it may promise.

`cleanset` gathers and divides the images, `distil` makes the guard, `selftest` attacks the bundle, `enrolling` puts the
parts together, `statement` says in words what came of it.
"""
