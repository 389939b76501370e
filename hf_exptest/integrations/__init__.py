# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""ExpTest in frameworks that have a place for plugins of their own; a module for each, which needs that framework."""
