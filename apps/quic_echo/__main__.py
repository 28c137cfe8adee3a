"""`python -m apps.quic_echo`, where the console script is not installed."""

import sys

from apps.quic_echo.main import main

sys.exit(main())
