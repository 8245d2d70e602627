"""Everything that lies on disk or goes over the wire, as types; and the errors."""
