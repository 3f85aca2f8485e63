# SPDX-License-Identifier: Apache-2.0
"""rdma_comm, the KV cache transfer module of FastDeploy, on kvrail.

    from rdma_comm import RDMACommunicator

Same names, same signatures (every one that was shipped), same environment variables; docs/fastdeploy.md lists what is
better. Importing it needs no NIC, no CUDA and no libibverbs: what is missing is said when a communicator is made.
"""

from ._communicator import ConnectStatus, RDMACommunicator
from kvrail import __version__

__all__ = ["ConnectStatus", "RDMACommunicator", "__version__"]
