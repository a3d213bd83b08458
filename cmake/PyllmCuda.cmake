# The CUDA modules: pyllm._cuda by nvcc, and pyllm._cuda_emu, the same sources by the C++ compiler for tests on machines
# without a GPU.
file(GLOB PYLLM_CUDA_KERNELS CONFIGURE_DEPENDS cuda/*.cu)
file(GLOB PYLLM_CUDA_HOPPER CONFIGURE_DEPENDS cuda/hopper/*.cu)
file(GLOB PYLLM_CUDA_HOST CONFIGURE_DEPENDS cuda/*.cpp cuda/bindings/*.cpp)
list(APPEND PYLLM_CUDA_HOST ${PYLLM_CUDA_SHARED_BINDINGS})

function(_pyllm_cuda_missing why)
  if(PYLLM_CUDA STREQUAL "AUTO")
    message(STATUS "pyllm: no CUDA module: ${why}")
  else()
    message(FATAL_ERROR "PYLLM_CUDA=${PYLLM_CUDA}, but ${why}")
  endif()
endfunction()

# Folders with the headers of NVIDIA's Python packages: site-packages/nvidia/*/include of this Python, in an isolated
# build also those of the environment that is installed into.
function(_pyllm_nvidia_includes out)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import glob, sys, sysconfig
folders = dict.fromkeys([*sys.path, sysconfig.get_path('platlib')])
print(';'.join(found for each in folders for found in sorted(glob.glob(each + '/nvidia/*/include'))))"
    OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(${out} "${found}" PARENT_SCOPE)
endfunction()

# A macro: enable_language() must be called in the scope of the whole build.
macro(pyllm_find_cuda)
  # Before CUDA is enabled: CMake's own default may be an architecture that nvcc no longer knows. The PTX of 90 serves
  # later GPUs.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90-real;90-virtual" CACHE STRING "")
  endif()
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})  # check_language() looks only on PATH
    find_program(PYLLM_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
    if(PYLLM_NVCC)
      set(CMAKE_CUDA_COMPILER "${PYLLM_NVCC}")
    endif()
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  set(PYLLM_CUDA_FOUND OFF)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    _pyllm_cuda_missing("no nvcc that works was found (on PATH, in CUDA_HOME or /usr/local/cuda)")
  elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
    _pyllm_cuda_missing("nvcc must be 12.0 or later, got ${CMAKE_CUDA_COMPILER_VERSION}")
  else()
    set(PYLLM_CUDA_FOUND ON)
    find_package(CUDAToolkit REQUIRED)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  endif()
endmacro()

# What kernels are compiled with. -fmad=false: a compiler must not choose where to fuse (the sources call fmaf). With
# PYLLM_WERROR ptxas also tells what kernels use, for cmake/check_cuda_resources.py. Code is packed as small as drivers of
# that release unpack, and lines are left out unless asked for: all kernels of linear_skinny_bf16.cu are 2.7 MB with
# lines and by default, 0.2 MB so.
function(_pyllm_kernel_options target)
  target_include_directories(${target} PRIVATE cuda)
  target_link_libraries(${target} PRIVATE pyllm_options)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra>"
    "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${PYLLM_CUDA_LINEINFO}>>:-lineinfo>"
    "$<$<COMPILE_LANGUAGE:CUDA>:$<IF:$<VERSION_GREATER_EQUAL:${CMAKE_CUDA_COMPILER_VERSION},13.0>,--compress-mode=size,-Xfatbin=-compress-all>>"
    "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${PYLLM_WERROR}>>:-Xptxas=-v;-Werror=all-warnings;-Xcompiler=-Werror>")
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_RUNTIME_LIBRARY Static)
endfunction()

function(pyllm_add_cuda)
  pybind11_add_module(_cuda MODULE NO_EXTRAS ${PYLLM_CUDA_HOST})
  target_include_directories(_cuda PRIVATE cuda)
  target_link_libraries(_cuda PRIVATE pyllm_core CUDA::cudart_static ${CMAKE_DL_LIBS})
  if(PYLLM_CUDA_KERNELS)
    add_library(pyllm_cuda_kernels OBJECT ${PYLLM_CUDA_KERNELS})
    _pyllm_kernel_options(pyllm_cuda_kernels)
    target_link_libraries(_cuda PRIVATE pyllm_cuda_kernels)
  endif()
  if(PYLLM_CUDA_HOPPER)  # wgmma and TMA: their code is for sm_90a and nothing else
    add_library(pyllm_cuda_hopper OBJECT ${PYLLM_CUDA_HOPPER})
    set_target_properties(pyllm_cuda_hopper PROPERTIES CUDA_ARCHITECTURES "90a-real")
    _pyllm_kernel_options(pyllm_cuda_hopper)
    target_link_libraries(_cuda PRIVATE pyllm_cuda_hopper)
    target_compile_definitions(_cuda PRIVATE PYLLM_HAVE_HOPPER=1)
  endif()
  # The library is found at run time (pyllm/devices/cuda_driver.py); here only its declarations are needed.
  _pyllm_nvidia_includes(wheels)
  find_path(PYLLM_CUBLAS_INCLUDE cublasLt.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ${wheels})
  set(note "without cuBLASLt: no cublasLt.h (pip install nvidia-cublas)")
  if(PYLLM_CUBLAS_INCLUDE)
    set_property(SOURCE cuda/gemm_lt.cpp APPEND PROPERTY COMPILE_DEFINITIONS PYLLM_HAVE_CUBLASLT=1)
    set_property(SOURCE cuda/gemm_lt.cpp APPEND PROPERTY INCLUDE_DIRECTORIES "${PYLLM_CUBLAS_INCLUDE}")
    set(note "with cuBLASLt's headers from ${PYLLM_CUBLAS_INCLUDE}")
  endif()
  install(TARGETS _cuda LIBRARY DESTINATION pyllm)
  message(STATUS "pyllm: CUDA ${CUDAToolkit_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}, ${note}")
endfunction()
