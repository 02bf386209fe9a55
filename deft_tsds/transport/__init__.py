"""Plans that carry queries to candidates.

`problem` states what is to be carried where. `tsds` has the exact optimum of the paper's objective (`closed_form`, and
as a differentiable path `path`); `objective` and `terms` make other objectives, which `solve` minimises with a proof
(`descent`, with the regions of `projections` and `kinks`) and `implicit` differentiates through (`pairs` for
embeddings). `knobs` learns alpha and the bandwidth by gradient; `relaxed` is a draw that has one.
"""
