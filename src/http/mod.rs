//! The boot listener: loaders, scripts, kernels, initrds, phone-home.
