//! dls.toml and the environment become a checked [`Config`].
