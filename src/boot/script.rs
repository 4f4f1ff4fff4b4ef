//! iPXE scripts. iPXE has no quoting, so every value is checked again here before it is
//! written into a line: no line ends, no `${`, `&&`, `||`, `;`, no control characters.

use super::plan::Plan;

/// What a script needs besides the plan.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    /// `http://HOST:PORT/b/ID.TOKEN/`.
    pub url: &'a str,
    /// MAC, for the screen.
    pub mac: crate::model::MacAddr,
    /// Host name or empty.
    pub hostname: &'a str,
    /// Image's name or empty, for the screen.
    pub image: &'a str,
    /// Seconds between looks while waiting.
    pub wait_seconds: u32,
}

/// Renders the script; never fails, an unsafe value turns it into the waiting screen that says so.
#[must_use]
pub fn render(plan: &Plan, frame: &Frame<'_>) -> String {
    let _ = (plan, frame);
    unimplemented!()
}

/// True if a value may stand in a script line or kernel command line.
#[must_use]
pub fn is_safe(value: &str) -> bool {
    let _ = value;
    unimplemented!()
}
