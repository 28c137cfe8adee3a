"""`python -m apps.quic_echo`."""

import sys

from apps.quic_echo.main import main

sys.exit(main())
