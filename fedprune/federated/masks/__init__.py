"""The rules for whose the mask is: `shared`, `voted`, `personal` or `nested` (conf/whose).

Every option is a `Whose` (whose.py). It says which prune events the server carries out and which a client does, which mask a
client is sent, and what becomes of the masks that come back.
"""

from fedprune.federated.masks.personal import PersonalMask
from fedprune.federated.masks.server_event import prune_server
from fedprune.federated.masks.shared import Shared
from fedprune.federated.masks.voted import Voted
from fedprune.federated.masks.whose import PruneContext, UpdateSummary, Whose

__all__ = ["PersonalMask", "PruneContext", "Shared", "UpdateSummary", "Voted", "Whose", "prune_server"]
