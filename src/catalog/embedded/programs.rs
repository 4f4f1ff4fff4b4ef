//! Which PostgreSQL programs are installed, and which of them suit a cluster.
//!
//! [`plan`] is pure. Nothing is downloaded, nothing is installed.

use std::path::{Path, PathBuf};

use super::EmbeddedError;

/// The oldest major version whose SQL the migrations can use (multiranges).
const OLDEST: u32 = 14;

/// Where to look for programs.
#[derive(Debug, Clone)]
pub struct Search {
    /// Directories with one subdirectory per version, `15/bin` or `pgsql-15/bin` in it.
    pub roots: Vec<PathBuf>,
    /// Directories with programs.
    pub path: Vec<PathBuf>,
}

impl Search {
    /// Where distributions put them, and PATH.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "PATH is where programs are; it configures nothing"
    )]
    pub fn usual() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self {
            roots: vec![
                "/usr/lib/postgresql".into(),
                "/usr/libexec/postgresql".into(),
                "/opt/postgresql".into(),
                "/usr".into(),
            ],
            path: std::env::split_paths(&path).collect(),
        }
    }

    /// What is there, newest first.
    pub(super) async fn installed(&self) -> Vec<Installed> {
        let mut dirs = Vec::new();
        for root in &self.roots {
            let Ok(entries) = std::fs::read_dir(root) else {
                continue;
            };
            let mut names: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
            names.sort();
            dirs.extend(names.into_iter().map(|dir| dir.join("bin")));
        }
        dirs.extend(self.path.iter().cloned());
        let mut found: Vec<Installed> = Vec::new();
        for dir in dirs {
            if let Some(installed) = Installed::look(&dir).await
                && !found.iter().any(|f| f.major == installed.major)
            {
                found.push(installed);
            }
        }
        found.sort_by_key(|installed| std::cmp::Reverse(installed.major));
        found
    }
}

/// A directory with PostgreSQL's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    /// Major version.
    pub(super) major: u32,
    /// Where the programs are.
    pub(super) bin: PathBuf,
}

impl Installed {
    /// The programs in a directory, if the server's are there.
    pub(super) async fn look(bin: &Path) -> Option<Self> {
        let postgres = bin.join("postgres");
        if !postgres.is_file() || !bin.join("initdb").is_file() {
            return None;
        }
        let output = tokio::process::Command::new(&postgres)
            .arg("--version")
            .output()
            .await
            .ok()?;
        let major = major(&String::from_utf8_lossy(&output.stdout))?;
        // Programs beside a link are found beside what it points to.
        let bin = std::fs::canonicalize(&postgres).ok()?.parent()?.to_owned();
        Some(Self { major, bin })
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// `postgres (PostgreSQL) 15.14 (Debian ..)` -> 15
fn major(version: &str) -> Option<u32> {
    let number = version
        .split_whitespace()
        .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    number
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// What to do with which programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// There is no cluster: make one.
    Create(Installed),
    /// The cluster is of this version.
    Run(Installed),
    /// The cluster is older than the newest programs, and its own are there too.
    Upgrade {
        /// The cluster's version.
        from: Installed,
        /// The newest.
        to: Installed,
    },
}

/// Decides from the cluster's `PG_VERSION` and what is installed, newest first.
pub(super) fn plan(
    cluster: Option<String>,
    installed: &[Installed],
) -> Result<Plan, EmbeddedError> {
    let Some(newest) = installed.first() else {
        return Err(EmbeddedError::NotInstalled);
    };
    if newest.major < OLDEST {
        return Err(EmbeddedError::Version(format!(
            "PostgreSQL {} is installed, but dls needs {OLDEST} or newer: install a newer one, or set [database] url",
            newest.major
        )));
    }
    let Some(version) = cluster else {
        return Ok(Plan::Create(newest.clone()));
    };
    let own = installed.iter().find(|i| i.major.to_string() == version);
    match own {
        Some(own) if own.major == newest.major => Ok(Plan::Run(own.clone())),
        Some(own) => Ok(Plan::Upgrade {
            from: own.clone(),
            to: newest.clone(),
        }),
        None if version.parse::<u32>().is_ok_and(|v| v > newest.major) => {
            Err(EmbeddedError::Version(format!(
                "the embedded database was made by PostgreSQL {version}, which is newer than the installed {}: install PostgreSQL {version} (`apt-get install postgresql-{version}`)",
                newest.major
            )))
        }
        None => Err(EmbeddedError::Version(format!(
            "the embedded database was made by PostgreSQL {version}, but {} is installed: install PostgreSQL {version} beside it (`apt-get install postgresql-{version}`) and start dls again, which carries the data over",
            newest.major
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(major: u32) -> Installed {
        Installed {
            major,
            bin: format!("/usr/lib/postgresql/{major}/bin").into(),
        }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(
            major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major("postgres (PostgreSQL) 18beta2"), Some(18));
        assert_eq!(major("no such thing"), None);
    }

    #[test]
    fn every_meeting_of_cluster_and_programs() {
        let v = |text: &str| Some(text.to_owned());
        assert!(matches!(plan(None, &[]), Err(EmbeddedError::NotInstalled)));
        assert_eq!(
            plan(None, &[installed(15)]).unwrap(),
            Plan::Create(installed(15))
        );
        assert_eq!(
            plan(v("15"), &[installed(15)]).unwrap(),
            Plan::Run(installed(15))
        );
        assert_eq!(
            plan(v("14"), &[installed(17), installed(14)]).unwrap(),
            Plan::Upgrade {
                from: installed(14),
                to: installed(17)
            }
        );
        for (cluster, programs, says) in [
            (v("17"), vec![installed(15)], "newer than the installed 15"),
            (
                v("13"),
                vec![installed(15)],
                "install PostgreSQL 13 beside it",
            ),
            (None, vec![installed(13)], "needs 14 or newer"),
        ] {
            let error = plan(cluster, &programs).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
