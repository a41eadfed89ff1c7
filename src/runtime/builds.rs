//! The builds of ONNX Runtime that tlpipe can install: each has one provider beside the processor's own.

use std::fmt;
use std::str::FromStr;

/// A build of ONNX Runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// For the processor alone: the default.
    Cpu,
    /// With CUDA, for NVIDIA cards.
    Cuda,
    /// With OpenVINO.
    OpenVino,
}

/// Text that names no build.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no build of ONNX Runtime; use cuda, openvino or cpu")]
pub struct UnknownBuild(String);

impl Build {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::OpenVino, Self::Cuda];

    /// What it is there for, by ONNX Runtime's name without its ending.
    pub fn provider(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA",
            Self::OpenVino => "OpenVINO",
        }
    }

    /// What pip is given: packages, versions, hashes.
    pub(super) fn requirements(self) -> &'static str {
        match self {
            Self::Cpu => include_str!("requirements/cpu.txt"),
            Self::Cuda => include_str!("requirements/cuda.txt"),
            Self::OpenVino => include_str!("requirements/openvino.txt"),
        }
    }

    /// What is downloaded, for people.
    pub fn download(self) -> &'static str {
        match self {
            Self::Cpu => "about 20 MB",
            Self::Cuda => "about 2 GB",
            Self::OpenVino => "about 80 MB",
        }
    }

    /// As people call it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Cpu => "ONNX Runtime",
            Self::Cuda => "ONNX Runtime with CUDA",
            Self::OpenVino => "ONNX Runtime with OpenVINO",
        }
    }
}

impl FromStr for Build {
    type Err = UnknownBuild;

    fn from_str(text: &str) -> Result<Self, UnknownBuild> {
        Self::ALL.into_iter().find(|build| build.to_string() == text).ok_or_else(|| UnknownBuild(text.to_owned()))
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::OpenVino => "openvino",
        })
    }
}
