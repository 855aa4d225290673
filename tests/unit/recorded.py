"""Studies asked for over the interface, and the rows of the record that they leave."""

from serve.api import build_api
from serve.record import read_rows
from tests.unit.api_client import Client, MeanGray


def client_with(record, predictor=None):
    """Of an interface that leaves its rows in this record."""
    return Client(build_api(predictor or MeanGray(), record=record))


def rows_of(url):
    return list(read_rows(url))
