"""Tickets as files: read, shown, started from, exported.

python -m fedprune.ticket show outputs/lth_fedavg/JOB/ticket.safetensors
"""

from fedprune.ticket.read import Ticket, load_ticket
from fedprune.ticket.start_from import Begin

__all__ = ["Begin", "Ticket", "load_ticket"]
