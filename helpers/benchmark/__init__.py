"""The measuring tool: candidates in processes of their own, interleaved rounds, one result."""
