# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A module beside the script, which the launcher must not hide."""


def rows(torch):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(32, (256, 12), generator=generator)
    return [{"input_ids": row, "labels": (row < 16).sum().gt(6).long()} for row in tokens]
