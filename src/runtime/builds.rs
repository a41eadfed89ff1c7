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

    /// What an environment of Python is to have, as `pip install` takes it; tlpipe's own wheel asks for the same (`pyproject.toml`).
    /// For the processor any library does that has the interface and is not newer than what was tested.
    pub(super) fn requirement(self) -> &'static str {
        match self {
            Self::Cpu => "onnxruntime>=1.24.1,<1.33",
            Self::Cuda => "onnxruntime-gpu[cuda,cudnn]==1.31.1",
            Self::OpenVino => "onnxruntime-openvino==1.24.1",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::probe::OLDEST;

    /// The wheel asks pip for what this program looks for, and for no other release than the one that is pinned and tested.
    #[test]
    fn wheel_requirements_and_pins_agree() {
        let project: toml::Table = include_str!("../../pyproject.toml").parse().unwrap();
        let of = |value: &toml::Value| {
            let lines = value.as_array().unwrap().iter().map(|line| line.as_str().unwrap().split(';').next().unwrap().trim());
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of(&project["project"]["dependencies"]), [Build::Cpu.requirement()]);
        for build in [Build::Cuda, Build::OpenVino] {
            let extra = of(&project["project"]["optional-dependencies"][&build.to_string()]);
            // Two libraries of one version would have one name in one folder.
            let version = build.requirement().split("==").nth(1).unwrap();
            assert_eq!(extra, [build.requirement().to_owned(), format!("onnxruntime!={version}")]);
            let package = build.requirement().split('[').next().unwrap().split("==").next().unwrap();
            assert!(build.requirements().contains(&format!("\n{package}=={version} ")), "{build}");
        }
        let pinned = Build::Cpu.requirements().split_once("onnxruntime==1.").unwrap().1;
        let minor: u32 = pinned.split('.').next().unwrap().parse().unwrap();
        assert_eq!(Build::Cpu.requirement(), format!("onnxruntime>=1.{OLDEST}.1,<1.{}", minor + 1));
    }
}
