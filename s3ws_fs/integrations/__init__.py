"""What fits workspaces into other systems: mount(8) and fstab, Docker's and podman's volumes, …"""
