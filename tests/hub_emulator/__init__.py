"""A Hugging Face Hub on loopback: enough of its HTTP API for `huggingface_hub` to create, upload, tag and download.

```python
with HubEmulator() as hub:
    hub.run_python("from huggingface_hub import create_repo; create_repo('org/model')")
    assert hub.repository("org/model").paths() == [".gitattributes"]
```
"""

from .emulator import HubEmulator
from .faults import Fault
from .repository import Commit, Repository, StoredFile


__all__ = ["Commit", "Fault", "HubEmulator", "Repository", "StoredFile"]
