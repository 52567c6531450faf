"""Do slow work after a Flask request: send a signal, and it runs in a request of its own."""

from .actions import async_signal as async_signal
from .current import current_envelope as current_envelope
from .delivery import Delivery as Delivery
from .delivery import DeliveryState as DeliveryState
from .envelope import Envelope as Envelope
from .errors import AsyncHooksError as AsyncHooksError
from .errors import ConfigError as ConfigError
from .errors import DataError as DataError
from .errors import DepthExceeded as DepthExceeded
from .errors import Interrupted as Interrupted
from .errors import NoAppContext as NoAppContext
from .errors import OutboxRequired as OutboxRequired
from .errors import OutboxUnavailable as OutboxUnavailable
from .errors import TokenError as TokenError
from .errors import TokenExpired as TokenExpired
from .errors import TokenReplayed as TokenReplayed
from .errors import TransportError as TransportError
from .extension import AsyncHooks as AsyncHooks
from .raised import Continue as Continue
from .raised import Discard as Discard
from .raised import Retry as Retry
from .raised import SkipTask as SkipTask
from .task import AsyncTask as AsyncTask
from .task import Auth as Auth

__version__ = "0.1.0.dev0"
