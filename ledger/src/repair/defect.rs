//! Defects of repair that the simulation can plant, to show that its checker catches them. None of
//! this is compiled into the product.

/// A planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Defect {
    /// A repair says that it is done, and has copied nothing.
    NothingCopied,
    /// What was sent counts as copied: nobody waits until the new bookie has it on its disk.
    CopyNotAwaited,
}
