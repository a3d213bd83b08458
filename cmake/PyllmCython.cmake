# pyllm_cython_module(<target> MODULE <dotted.name> PYX <file.pyx>): a C++ extension module from one Cython file.
# Needs nothing but the cython package.
function(pyllm_cython_module target)
  cmake_parse_arguments(A "" "MODULE;PYX" "" ${ARGN})
  get_filename_component(pyx "${A_PYX}" ABSOLUTE)
  set(dir "${CMAKE_CURRENT_BINARY_DIR}/cython")
  set(out "${dir}/${target}.cpp")
  add_custom_command(
    OUTPUT "${out}"
    COMMAND "${CMAKE_COMMAND}" -E make_directory "${dir}"
    COMMAND "${Python_EXECUTABLE}" -m cython -3 --cplus -M --module-name "${A_MODULE}" "${pyx}" -o "${out}"
    DEPENDS "${pyx}"
    DEPFILE "${out}.dep"
    COMMENT "Cython ${A_MODULE}"
    VERBATIM)
  Python_add_library(${target} MODULE WITH_SOABI "${out}")
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
  if(NOT MSVC)  # the generated code is not ours to keep free of warnings
    target_compile_options(${target} PRIVATE -w -ffp-contract=off)
  endif()
endfunction()
