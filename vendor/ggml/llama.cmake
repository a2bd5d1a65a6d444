# How llama.cpp is built here, where its own files say otherwise: sooner. CMake reads this at the end of each project() that it meets, as
# .cargo/config.toml sets CMAKE_PROJECT_INCLUDE and llama-cpp-sys-2 hands that on.

function(build_sooner)
    # libllama builds graphs, and ggml's kernels compute them: only the latter are worth all of the compiler's time. What makes tokens, samples
    # them or builds a graph anew for each is worth some of it.
    target_compile_options(llama PRIVATE -O1)
    foreach(name llama-context llama-graph llama-kv-cache llama-sampler llama-vocab unicode)
        set_source_files_properties(${llama.cpp_SOURCE_DIR}/src/${name}.cpp TARGET_DIRECTORY llama PROPERTIES COMPILE_OPTIONS -O2)
    endforeach()
endfunction()

# The targets are there when the outermost project's file has been read. Older CMakes and other compilers build everything as it says.
if(PROJECT_NAME STREQUAL "llama.cpp" AND NOT MSVC AND CMAKE_VERSION VERSION_GREATER_EQUAL 3.19)
    cmake_language(DEFER CALL build_sooner)
endif()
