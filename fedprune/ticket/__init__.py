"""Tickets as files: reading, showing and exporting them, and starting a run from one.

python -m fedprune.ticket show outputs/lth_fedavg/JOB/ticket.safetensors
"""

from fedprune.ticket.init_from import InitFrom
from fedprune.ticket.read import Ticket, load_ticket
from fedprune.ticket.start_from import StartFrom

__all__ = ["InitFrom", "StartFrom", "Ticket", "load_ticket"]
