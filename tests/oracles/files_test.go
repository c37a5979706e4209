package oracles

// files are all files of known answers, with how many vectors each has that we
// run and that we skip.
var files = []file{
	wycheproofFile("ed25519_test.json", 151, 0, ed25519Verify),

	wycheproofFile("mldsa_44_verify_test.json", 180, 0, mldsaVerify(mldsa44Lib)),
	wycheproofFile("mldsa_65_verify_test.json", 210, 0, mldsaVerify(mldsa65Lib)),
	wycheproofFile("mldsa_87_verify_test.json", 241, 0, mldsaVerify(mldsa87Lib)),
	wycheproofFile("mldsa_44_sign_seed_test.json", 77, 9, mldsaSignSeed(mldsa44Lib)),
	wycheproofFile("mldsa_65_sign_seed_test.json", 87, 18, mldsaSignSeed(mldsa65Lib)),
	wycheproofFile("mldsa_87_sign_seed_test.json", 78, 18, mldsaSignSeed(mldsa87Lib)),
	wycheproofFile("mldsa_44_sign_noseed_test.json", 65, 8, mldsaSignPacked(mldsa44Lib)),
	wycheproofFile("mldsa_65_sign_noseed_test.json", 67, 11, mldsaSignPacked(mldsa65Lib)),
	wycheproofFile("mldsa_87_sign_noseed_test.json", 58, 11, mldsaSignPacked(mldsa87Lib)),

	wycheproofFile("mlkem_768_test.json", 201, 0, mlkemDecapsulate(mlkem768Lib)),
	wycheproofFile("mlkem_1024_test.json", 202, 0, mlkemDecapsulate(mlkem1024Lib)),
	wycheproofFile("mlkem_768_encaps_test.json", 265, 0, mlkemEncapsulate(mlkem768Lib)),
	wycheproofFile("mlkem_1024_encaps_test.json", 269, 0, mlkemEncapsulate(mlkem1024Lib)),
	wycheproofFile("mlkem_768_keygen_seed_test.json", 100, 0, mlkemKeyGen(mlkem768Lib)),
	wycheproofFile("mlkem_1024_keygen_seed_test.json", 100, 0, mlkemKeyGen(mlkem1024Lib)),
	wycheproofFile("mlkem_768_semi_expanded_decaps_test.json", 0, 9, mlkemExpanded),
	wycheproofFile("mlkem_1024_semi_expanded_decaps_test.json", 0, 9, mlkemExpanded),
	wycheproofFile("x25519_test.json", 518, 0, x25519Shared),

	wycheproofFile("aes_gcm_test.json", 68, 248, aeadVector(gcm)),
	wycheproofFile("chacha20_poly1305_test.json", 325, 0, aeadVector(chaCha)),
	wycheproofFile("hkdf_sha256_test.json", 86, 0, hkdfVector),
	wycheproofFile("hmac_sha256_test.json", 174, 0, hmacVector),

	acvpFile("sign/mldsa/testdata/ML-DSA-keyGen-FIPS204", 75, 0, mldsaACVPKeyGen),
	acvpFile("kem/mlkem/testdata/ML-KEM-keyGen-FIPS203", 50, 25, mlkemACVPKeyGen),
	acvpFile("kem/mlkem/testdata/ML-KEM-encapDecap-FIPS203", 50, 55, mlkemACVPEncapDecap),
}
