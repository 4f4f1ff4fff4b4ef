//! A database of a test's own, asked as a person would ask it: by psql.
//!
//! The cluster is reached by a unix socket, so it is there in every network namespace.

use std::process::Command;

use crate::support::TestDb;

/// A fresh database with the whole schema.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    url: String,
}

impl Database {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let url = runtime.block_on(async {
            let database = TestDb::new().await;
            database.pool.close().await;
            database.url
        });
        Self { url }
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Rows as text, columns split by `|`.
    pub(crate) fn query(&self, query: &str) -> String {
        let output = Command::new("psql")
            .args([&self.url, "-v", "ON_ERROR_STOP=1", "-XAtqc", query])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{query}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}
