"""Other methods than MedFocusCLIP on the same cells: zero-shot CLIP, Tip-Adapter, CoOp, CoCoOp."""
