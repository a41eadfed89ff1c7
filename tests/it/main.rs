//! The program as a user meets it: the release binary, real files, real models where they are at hand.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

mod adopt;
mod audit;
mod bad_input;
mod browser;
mod chromium;
mod cli;
mod compare;
mod engines;
mod export;
mod filter;
mod golden;
mod help;
mod incremental;
mod init;
mod install;
mod layers;
mod page;
mod predict;
mod providers;
mod quickstart;
mod real;
mod recipes;
mod remote;
mod s3;
mod schema;
mod serve;
mod shell;
mod sources;
mod support;
mod sweep;
mod trouble;
mod uncached;
mod update;
mod views;
mod web;
