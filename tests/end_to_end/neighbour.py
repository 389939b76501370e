# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""A module beside the script, which the launcher must not hide."""


def rows(torch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (256,), generator=generator)
    # Each label has words of its own, which a few steps can tell apart.
    tokens = torch.randint(16, (256, 12), generator=generator) + 16 * labels[:, None]
    return [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]
