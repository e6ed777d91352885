"""Procedurally drawn people, so that everything can be tried without any data set."""

from embae.datasets.synthetic.image import SyntheticImage
from embae.datasets.synthetic.listing import DOMAIN_NAMES, DomainName, records

__all__ = ["DOMAIN_NAMES", "DomainName", "SyntheticImage", "records"]
