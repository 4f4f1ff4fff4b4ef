//! `dls` with the feature `zfs`, under a name of its own: built as `dls` it would take the place
//! of the plain program that other tests run at that moment.

use std::process::ExitCode;

fn main() -> ExitCode {
    dls::cli::main()
}
