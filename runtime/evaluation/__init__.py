"""How well a bundle answers its members' tasks: routed, each member alone, and against plain baselines."""
